"""What departments ask of each other, each with its job, its policies and its exact expected answer."""
