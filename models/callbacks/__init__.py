"""Lightning callbacks: what is observed while a model trains."""
