"""The course: exercises.py is to be filled in, check.py measures it, README.md is for teachers."""
