"""What a laboratory adds to samstudy."""
