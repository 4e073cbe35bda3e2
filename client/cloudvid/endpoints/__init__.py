"""One request to one endpoint: how it is sent, what the answer means, what is raised if it fails."""
