# SPDX-License-Identifier: Apache-2.0
# Runs the real sec with a clock that shows the second of the event that it looks at, so that hours pass in a moment.
# usage: perl sec_clock.pl /usr/bin/sec SECOND-AT-START OPTION…
use strict;
use warnings;
use Time::Local;

my ($program, $now);
BEGIN {
    ($program, $now) = splice(@ARGV, 0, 2);
    no warnings 'once';
    *CORE::GLOBAL::time = sub () {
        no strict 'vars';
        my $line = defined($main::bufpos) ? $main::input_buffer[$main::bufpos] : undef;
        if (defined($line) && $line =~ /^\{"time":"(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)/) {
            my $then = Time::Local::timegm($6, $5, $4, $3, $2 - 1, $1);
            $now = $then if $then > $now;
        }
        return $now;
    };
}
do $program or die "$program: $@ $!";
