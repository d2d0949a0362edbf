"""The semantic cache: which two requests may share one answer, and how often that was wrong."""
