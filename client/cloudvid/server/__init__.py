"""The state of a model server: its workers, queues and models, waiting for them, scaling them, and finding faults."""
