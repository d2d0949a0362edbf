"""What every render cost: usage times a dated price, held, posted or voided, kept for ever."""
