"""What is behind `nern COMMAND`: of each command its options, its help, and what it calls."""
