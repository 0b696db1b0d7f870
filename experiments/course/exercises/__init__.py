"""The twelve files as the learner gets them: forward is there, backward is blank."""
