"""What the operator asks the ledger: questions to `Store.query`, answered as plain values."""
