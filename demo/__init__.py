"""The demo pair: two small pipelines of the real classes, trained from nothing on scenes that this package draws.

`python -m demo train` makes them, `python -m demo evaluate` judges them; demo/README.md says how and how well.
"""
