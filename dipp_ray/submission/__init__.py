"""`dipp-ray submit`: a command as a job on a cluster, followed, submitted again, stopped."""
