"""How good generated images are, against real ones. Plain functions of tensors; nothing here trains."""
