"""The page in a browser: the networks and samplers of the project, in one file."""
