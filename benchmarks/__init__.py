"""The questions: one module, one question, one entry point."""
