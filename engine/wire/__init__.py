"""What processes send one another: messages with the frontend, commands to the ranks. Token ids, never tensors."""
