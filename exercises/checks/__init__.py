"""What check.py measures, a file a subject.

A check takes the learner's function and returns what it found, in a few words.  For a wrong one it
raises measure.Mistake, a sentence with the number that gave it away.  It never looks at the code.
"""
