"""The claims of this project, a file a subject; audit.py measures them.

A check is a function without arguments that returns a common.claims.Claim.  A file has some of

    CLAIMS            checks that need no checkpoint
    draw(folder)      writes the pictures that belong to them
    NETWORKS          names of checkpoints that ship, and
    about(path)       the checks of such a file, or of another of the same script, and their draw
    at_length(path)   further checks of it, which take minutes
"""
