"""What starts the processes of a sweep's runs: this machine, a hostfile's hosts, or SLURM."""
