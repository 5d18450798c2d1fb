"""What a bisection can vary, one file a factor."""
