"""One door to every model: keys, retries, fallbacks, limits and money in front of every provider."""
