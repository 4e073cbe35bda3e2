"""The state of a model server, and what can be done about it.

`state` is the one model of a stage (workers, queue, model, health) and `server` the one place that asks for it and
waits for it. `scale` changes the number of workers, `doctor` finds faults, and `local` reads what a server on this
machine leaves in its folder.
"""
