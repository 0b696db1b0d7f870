"""Looking at a network from outside: block by block, by shapes alone, for the first NaN."""
