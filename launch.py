"""Entry point: ``python launch.py --help``."""

from get3d_cluster.cli import main

if __name__ == "__main__":
    main()
