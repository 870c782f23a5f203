from raymu.cli.app import main

main()
