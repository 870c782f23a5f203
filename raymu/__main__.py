from raymu.cli.program import main

main()
