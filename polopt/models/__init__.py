"""What is learned about the world."""
