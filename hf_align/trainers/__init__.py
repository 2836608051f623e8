"""What TRL's trainers lack: callbacks that record, warn, audit and show progress."""
