"""Tasks: the data that original networks were trained on."""
