"""What several experiments share: data, options, figures, reports, the console."""
