"""What goes wrong in a training run, seen layer by layer and said in words."""
