"""Tables, statistics and pictures of finished cells."""
