"""What goes wrong in a training run: measured layer by layer, and explained in words."""
