"""What keeps a bad update or a lost rank from going unnoticed."""
