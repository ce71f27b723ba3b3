"""What a run needs besides its stages: identities, the lock, the network, and what is said when it fails."""
