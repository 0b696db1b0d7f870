"""GoogLeNet on photographs: classify, evaluate, train."""
