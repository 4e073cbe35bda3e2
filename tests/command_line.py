"""`cloudvid` as a user runs it, and its tables read back."""

import os

import forked


def clean_environment():
    """This process's environment without what belongs to a developer's own server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLOUDVID_")}


def cloudvid(*arguments, cwd, environment=None):
    """Its exit code and output."""
    return forked.run("cloudvid.cli:main", *arguments, cwd=cwd, environment=clean_environment() | (environment or {}))


def rows(text):
    """The table's rows by stage, each by heading."""
    first, *others = text.splitlines()
    starts = [first.index(heading) for heading in first.split()]
    ends = [*starts[1:], None]
    cells = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in others]
    return {row[0]: dict(zip(first.split(), row, strict=True)) for row in cells}
