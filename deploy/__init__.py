"""Starting and stopping TorchServe with both stages, and what runs beside and in front of it."""


class DeployError(RuntimeError):
    """What was asked for cannot be done; the message says why, and what to do."""
