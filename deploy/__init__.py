"""Starting and stopping TorchServe with both stages, and what runs beside and in front of it."""
