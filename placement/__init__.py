"""Where experts live, and what that costs."""
