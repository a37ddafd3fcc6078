//go:build race

package main

// slack is how many times more memory a program with the race detector takes, at most.
const slack = 8
