"""What the adapter and the stages share: how requests are read from HTTP bodies, and the jobs that they become."""
