"""What the cases stand on: processes, a relay with weather, the table. It knows no case."""
