"""What things cost: dated prices with their sources, and the arithmetic that is exact."""
