"""A walk over imports, for the tests of the house and for those who break it."""


def reached(name, imports):
    """A module and all that it imports, and what they import.  imports(name): the names of ours in one."""
    seen = set()
    todo = [name]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += imports(at)
    return seen
