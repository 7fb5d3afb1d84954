// Command documentdb is the MongoDB-compatible server that the tests of MongoAssetStore run against: DocumentDB, an
// extension of PostgreSQL, behind FerretDB 2. See install beside this file.
//
// It keeps its data in a folder of its own, ends when its PostgreSQL ends, and takes PostgreSQL with it when it is killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/FerretDB/FerretDB/v2/ferretdb"
)

const startTime = 20 * time.Second

// The kernel kills PostgreSQL when the thread that started it ends: with main on the first one that is when the process does.
func init() { runtime.LockOSThread() }

func main() {
	address := flag.String("listen-addr", "127.0.0.1:27017", "host:port to listen on")
	folder := flag.String("folder", ".", "where the data goes; a short path, a socket is in it")
	flag.Parse()

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)

	program, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	parts := filepath.Join(filepath.Dir(program), "documentdb-parts")
	if err := makeData(parts, *folder); err != nil {
		log.Fatal(err)
	}
	postgres, died, err := startPostgres(parts, *folder)
	if err != nil {
		log.Fatal(err)
	}
	telemetry := false
	front, err := ferretdb.New(&ferretdb.Config{
		PostgreSQLURL: "postgres:///postgres?user=postgres&host=" + *folder,
		ListenAddr:    *address,
		StateDir:      *folder,
		Telemetry:     &telemetry,
	})
	if err != nil {
		log.Fatal(err)
	}
	go front.Run(context.Background())
	select {
	case err := <-died:
		log.Fatalf("PostgreSQL ended: %v", err)
	case <-ended:
		// Fast, but in order: its clients are cut off, its data is written.
		_ = postgres.Process.Signal(syscall.SIGINT)
		<-died
	}
}

// makeData copies the template where there are no data yet.
func makeData(parts, folder string) error {
	data := filepath.Join(folder, "data")
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(parts, "template"), data+".new").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.Rename(data+".new", data)
}

// startPostgres returns once PostgreSQL takes connections; the channel tells of its end.
func startPostgres(parts, folder string) (*exec.Cmd, chan error, error) {
	out, err := os.OpenFile(filepath.Join(folder, "postgres.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	program, err := filepath.EvalSymlinks(filepath.Join(parts, "bin", "postgres"))
	if err != nil {
		return nil, nil, err
	}
	data, deadline := filepath.Join(folder, "data"), time.Now().Add(startTime)
	for {
		// All talk through the socket in the folder: the front, and DocumentDB and its index builder with their own PostgreSQL.
		postgres := exec.Command(program, "-D", data, "-k", folder, "-c", "cron.host="+folder,
			"-c", "documentdb.localhost_connection_string=host="+folder)
		postgres.Stdout, postgres.Stderr = out, out
		postgres.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := postgres.Start(); err != nil {
			return nil, nil, err
		}
		died := make(chan error, 1)
		go func() { died <- postgres.Wait() }()
		for hasEnded := false; !hasEnded; {
			select {
			case err = <-died:
				// After a kill -9 its former children may be there for another moment; it refuses to start beside them.
				hasEnded = true
				time.Sleep(50 * time.Millisecond)
			case <-time.After(10 * time.Millisecond):
				if hasStarted(data, postgres.Process.Pid) {
					return postgres, died, nil
				}
			}
			if time.Now().After(deadline) {
				return nil, nil, errors.Join(errors.New("PostgreSQL does not start, see postgres.log"), err)
			}
		}
	}
}

// hasStarted tells whether the PostgreSQL of that process id takes connections, by the file that it keeps about that.
func hasStarted(data string, pid int) bool {
	content, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	lines := strings.Split(string(content), "\n")
	return len(lines) > 7 && lines[0] == fmt.Sprint(pid) && strings.TrimSpace(lines[7]) == "ready"
}
