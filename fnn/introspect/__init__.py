"""Tools that look at a network from outside: watch, summary, flops, finite, autodiff."""
