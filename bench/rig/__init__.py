"""What measurements of several processes share: workers that take commands, and nodes over a real relay."""
