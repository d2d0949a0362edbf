"""What the workers of a gateway, and its replicas, share: rate limits, in process or in Valkey."""
