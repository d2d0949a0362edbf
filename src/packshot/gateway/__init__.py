"""One door to every model: keys, retries, fallbacks, limits and money before every provider."""
