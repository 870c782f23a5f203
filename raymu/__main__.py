from raymu.cli import main

main()
