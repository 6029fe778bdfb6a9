/* The program that runs as the container's, and tells what it finds: one JSON object.
 *
 *   probe                  all about this process and its surroundings
 *   probe survey CALL...   the same, with /dev, the keyring and the loopback; then as by "try"
 *   probe overwrite PATH   open PATH for writing, as soon as it lets us, and write (see loader.c)
 *   probe terminal         push input into the terminal that standard input is
 *   probe breakout         leave a chroot, if one can; tell the root that is found then
 *   probe handle           open the root directory by a made-up file handle, as shocker did
 *   probe spy              watch for other processes until /spy.stop is there, tell what of them can be opened
 *   probe notify TEXT...   send each TEXT to $NOTIFY_SOCKET, then stay
 *   probe try CALL...      make system calls by name; tell errno of each
 *   probe into FILE ...    as without "into FILE", but tell it to a file, which is opened when all else is done
 *
 * Static, so that it runs in any root file system.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void string(const char *text, long size)
{
    putchar('"');
    for (long i = 0; i < size; i++) {
        unsigned char c = text[i];
        if (c == '"' || c == '\\' || c < 0x20 || c > 0x7e)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static int first = 1;

static void key(const char *name)
{
    if (!first)
        putchar(',');
    first = 0;
    string(name, strlen(name));
    putchar(':');
}

static void text(const char *name, const char *value)
{
    key(name);
    string(value, strlen(value));
}

static void number(const char *name, long long value)
{
    key(name);
    printf("%lld", value);
}

static void begin(const char *name)
{
    key(name);
    putchar('{');
    first = 1;
}

static void end(void)
{
    putchar('}');
    first = 0;
}

static void file(const char *name, const char *path)
{
    static char buffer[1 << 20];
    long size = 0, got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    key(name);
    if (fd < 0) {
        printf("null");
        return;
    }
    while (size < (long)sizeof buffer && (got = read(fd, buffer + size, sizeof buffer - size)) > 0)
        size += got;
    close(fd);
    string(buffer, size);
}

static void link_of(const char *name, const char *path)
{
    char target[4096];
    long size = readlink(path, target, sizeof target);

    key(name);
    if (size < 0)
        printf("null");
    else
        string(target, size);
}

static void descriptors(void)
{
    char path[64], name[16];
    struct stat status;

    begin("fds");
    /* Not by reading the directory, which would need a descriptor. */
    for (int fd = 0; fd < 1024; fd++) {
        if (fcntl(fd, F_GETFD) < 0)
            continue;
        snprintf(name, sizeof name, "%d", fd);
        begin(name);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        link_of("link", path);
        if (fstat(fd, &status) == 0) {
            number("mode", status.st_mode);
            number("rdev", status.st_rdev);
            number("ino", status.st_ino);
            number("uid", status.st_uid);
        }
        number("flags", fcntl(fd, F_GETFL));
        end();
    }
    end();
}

static void list(const char *name, char **items)
{
    key(name);
    putchar('[');
    for (int i = 0; items[i]; i++) {
        if (i)
            putchar(',');
        string(items[i], strlen(items[i]));
    }
    putchar(']');
}

static void report(char **argv, char **envp)
{
    static const char *const files[] = {
        "status", "limits", "mountinfo", "cgroup", "environ", "oom_score_adj", "uid_map", "gid_map",
        "setgroups", "timens_offsets", "personality", "timers", "stat", NULL};
    static const char *const namespaces[] = {
        "user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time", NULL};
    char path[64], cwd[4096] = "";
    struct utsname uts;
    struct itimerval timer;
    struct timespec boot;
    cpu_set_t cpus;
    int death = -1;
    long size;

    for (int i = 0; files[i]; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", files[i]);
        file(files[i], path);
    }
    begin("ns");
    for (int i = 0; namespaces[i]; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        link_of(namespaces[i], path);
    }
    end();
    descriptors();
    list("argv", argv);
    list("env", envp);
    /* The C library hides "(unreachable)"; the kernel does not. */
    size = syscall(SYS_getcwd, cwd, sizeof cwd);
    key("cwd");
    string(cwd, size > 0 ? size - 1 : 0);
    number("pid", getpid());
    number("ppid", getppid());
    number("sid", getsid(0));
    number("securebits", prctl(PR_GET_SECUREBITS));
    number("keepcaps", prctl(PR_GET_KEEPCAPS));
    number("dumpable", prctl(PR_GET_DUMPABLE));
    prctl(PR_GET_PDEATHSIG, &death);
    number("pdeathsig", death);
    number("nice", getpriority(PRIO_PROCESS, 0));
    number("scheduler", sched_getscheduler(0));
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof cpus, &cpus);
    number("cpus", CPU_COUNT(&cpus));
    getitimer(ITIMER_REAL, &timer);
    number("timer", timer.it_value.tv_sec);
    number("keyring", syscall(SYS_keyctl, 0, -3, 0)); /* KEYCTL_GET_KEYRING_ID, session */
    clock_gettime(CLOCK_BOOTTIME, &boot);
    number("boottime", boot.tv_sec);
    clock_gettime(CLOCK_MONOTONIC, &boot);
    number("monotonic", boot.tv_sec);
    uname(&uts);
    text("hostname", uts.nodename);
    text("domainname", uts.domainname);
}

static void overwrite(const char *path)
{
    struct timespec pause = {0, 1000000};
    long done = -1;
    int fd = -1, error = 0;

    for (int i = 0; i < 500 && fd < 0; i++) {
        fd = open(path, O_WRONLY);
        error = errno;
        nanosleep(&pause, NULL); /* ETXTBSY while it is executed */
    }
    if (fd >= 0) {
        done = pwrite(fd, "#!/OVERWRITTEN\n", 15, 0);
        error = errno;
    }
    number("opened", fd >= 0);
    number("written", done);
    number("errno", error);
}

static void terminal(void)
{
    char character = 'x', paste = 3;
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC);

    number("tiocsti", ioctl(0, TIOCSTI, &character) == 0 ? 0 : errno);
    number("tioclinux", ioctl(0, TIOCLINUX, &paste) == 0 ? 0 : errno);
    number("tty", fd >= 0 ? 0 : errno);
    number("ctty", ioctl(0, TIOCSCTTY, 0) == 0 ? 0 : errno);
}

static void breakout(void)
{
    struct stat status;
    int error = 0;

    if (mkdir("/tmp/jail", 0700) < 0 && errno != EEXIST)
        error = errno;
    if (chroot("/tmp/jail") < 0)
        error = errno;
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            error = errno;
    if (chroot(".") < 0)
        error = errno;
    stat("/", &status);
    number("errno", error);
    number("ino", status.st_ino);
    number("dev", status.st_dev);
}

static void handle(void)
{
    struct {
        struct file_handle head;
        uint64_t inode[2];
    } one = {{.handle_bytes = 8, .handle_type = 1}, {2, 0}};
    int mount = open("/", O_RDONLY | O_DIRECTORY);
    int fd = open_by_handle_at(mount, &one.head, O_RDONLY);

    number("errno", fd >= 0 ? 0 : errno);
}

/* What can be had of another process; every name is one finding. */
static void spy_on(int pid)
{
    static const char *const files[] = {"exe", "cwd", "root", "mem", "environ", "maps", NULL};
    char path[300], target[4096], name[400];
    long size;
    int fd;
    DIR *directory;
    struct dirent *entry;

    for (int i = 0; files[i]; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
        fd = open(path, i < 3 ? O_PATH | O_CLOEXEC : O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        snprintf(name, sizeof name, "%d %s", pid, files[i]);
        size = readlink(path, target, sizeof target);
        if (i >= 3)
            size = read(fd, target, sizeof target);
        key(name);
        string(target, size > 0 ? size : 0);
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    directory = opendir(path);
    while (directory && (entry = readdir(directory))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, entry->d_name);
        size = readlink(path, target, sizeof target);
        if (size < 0)
            continue;
        snprintf(name, sizeof name, "%d fd %s", pid, entry->d_name);
        key(name);
        string(target, size);
    }
    if (directory)
        closedir(directory);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
        snprintf(name, sizeof name, "%d ptrace", pid);
        text(name, "seized");
        /* Only a stopped one can be let go; else its end would be ours to wait for. */
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        waitpid(pid, NULL, __WALL);
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
}

static void spy(void)
{
    struct timespec start, now;
    int seen = 0;

    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (int pid = 2; pid < 40; pid++) {
            char path[64];
            snprintf(path, sizeof path, "/proc/%d", pid);
            if (pid == getpid() || access(path, F_OK) < 0)
                continue;
            seen++;
            spy_on(pid);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < 15 && access("/spy.stop", F_OK) < 0);
    number("looks", seen);
}

static void names(const char *name, const char *path)
{
    struct dirent *entry;
    DIR *directory = opendir(path);

    key(name);
    putchar('[');
    for (int some = 0; directory && (entry = readdir(directory)); some = 1) {
        if (some)
            putchar(',');
        string(entry->d_name, strlen(entry->d_name));
    }
    putchar(']');
    if (directory)
        closedir(directory);
}

static void try(const char *name)
{
    struct stat status;
    long result = 0;
    const char *argument = strchr(name, ':');

    argument = argument ? argument + 1 : "";
    if (strncmp(name, "read:", 5) == 0) {
        char byte;
        int fd = open(argument, O_RDONLY | O_NONBLOCK);
        result = fd < 0 ? -1 : read(fd, &byte, 1);
    } else if (strncmp(name, "write:", 6) == 0) {
        result = open(argument, O_WRONLY | O_NONBLOCK);
    } else if (strncmp(name, "create:", 7) == 0) {
        result = open(argument, O_WRONLY | O_CREAT | O_EXCL, 0600);
    } else if (strncmp(name, "mkdir:", 6) == 0) {
        result = mkdir(argument, 0700);
    } else if (strncmp(name, "stat:", 5) == 0) {
        result = stat(argument, &status);
    } else if (strncmp(name, "mode:", 5) == 0) {
        number(name, stat(argument, &status) < 0 ? -errno : (long)status.st_mode);
        return;
    } else if (strncmp(name, "inode:", 6) == 0) {
        number(name, stat(argument, &status) < 0 ? -errno : (long)status.st_ino);
        return;
    } else if (strncmp(name, "names:", 6) == 0) {
        names(name, argument);
        return;
    } else if (strncmp(name, "input:", 6) == 0) {
        /* TIOCSTI, with more bits than the kernel looks at where a number says so. */
        result = syscall(SYS_ioctl, 0, TIOCSTI | strtoul(argument, NULL, 16) << 32, "x");
    } else if (strncmp(name, "mknod:", 6) == 0) {
        /* A node of the type and number that a letter, and MAJOR*256+MINOR, say. */
        int kind = argument[0] == 'b' ? S_IFBLK : S_IFCHR;
        result = mknod("/tmp/node", kind | 0600, atoi(argument + 1));
        unlink("/tmp/node");
    } else if (strncmp(name, "unshare:", 8) == 0) {
        result = unshare(strtol(argument, NULL, 16));
    } else if (strncmp(name, "socket:", 7) == 0) {
        result = socket(atoi(argument), SOCK_RAW, 0);
    } else {
        result = -1;
        errno = EINVAL;
    }
    number(name, result < 0 ? errno : 0);
}

static long call_as_i386(long number_of)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(number_of), "b"(-1), "c"(0), "d"(0), "S"(-1), "D"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0)
        errno = -result;
    return result;
#else
    errno = ENOSYS;
    return -1;
#endif
}

/* How a system call ends that has nothing to work on: errno, or the signal that kills, negative. */
static void bare(const char *name, long number_of)
{
    int status = 0;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        long result = strncmp(name, "i386:", 5) == 0 ? call_as_i386(number_of)
                                                     : syscall(number_of, -1, 0, 0, -1, 0, 0);
        _exit(result < 0 ? errno & 0xff : 0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        status = 0xff00;
    number(name, WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
}

/* A directory's entries: what they are, whose, and what comes of opening them. */
static void tree(const char *path)
{
    static const int ways[] = {O_RDONLY, O_WRONLY};
    char name[4096];
    struct dirent *entry;
    struct stat status;
    DIR *directory = opendir(path);

    while (directory && (entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (lstat(name, &status) < 0)
            continue;
        begin(name);
        number("mode", status.st_mode);
        number("uid", status.st_uid);
        number("gid", status.st_gid);
        number("rdev", status.st_rdev);
        if (S_ISLNK(status.st_mode))
            link_of("link", name);
        key("open");
        putchar('[');
        for (int i = 0; i < 2; i++) {
            int fd = open(name, ways[i] | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
            printf(i ? ",%d" : "%d", fd < 0 ? errno : 0);
            if (fd >= 0)
                close(fd);
        }
        putchar(']');
        end();
        if (S_ISDIR(status.st_mode) && strcmp(entry->d_name, "pts") != 0)
            tree(name);
    }
    if (directory)
        closedir(directory);
}

static void survey(char **calls)
{
    struct ifreq loopback = {.ifr_name = "lo"};
    char keyring[256] = "";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    ioctl(fd, SIOCGIFFLAGS, &loopback);
    close(fd);
    number("loopback", loopback.ifr_flags);
    syscall(SYS_keyctl, 6, -3, keyring, sizeof keyring - 1); /* KEYCTL_DESCRIBE, session */
    text("keyring_description", keyring);
    number("ioprio", syscall(SYS_ioprio_get, 1, 0));
    begin("dev");
    tree("/dev");
    end();
    begin("tries");
    for (; *calls; calls++) {
        if (strncmp(*calls, "call:", 5) == 0 || strncmp(*calls, "i386:", 5) == 0)
            bare(*calls, atol(*calls + 5));
        else if (strncmp(*calls, "text:", 5) == 0)
            file(*calls, *calls + 5);
        else
            try(*calls);
    }
    end();
}

static void notify(char **texts)
{
    struct sockaddr_un address = {AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    strncpy(address.sun_path, getenv("NOTIFY_SOCKET"), sizeof address.sun_path - 1);
    for (; *texts; texts++)
        sendto(fd, *texts, strlen(*texts), 0, (struct sockaddr *)&address, sizeof address);
    pause();
}

int main(int argc, char **argv, char **envp)
{
    const char *verb, *file_name = NULL;
    char *told = NULL;
    size_t size;

    if (argc > 3 && strcmp(argv[1], "into") == 0) {
        file_name = argv[2];
        argv += 2;
        argc -= 2;
        stdout = open_memstream(&told, &size);
    }
    verb = argc > 1 ? argv[1] : "report";
    putchar('{');
    if (strcmp(verb, "overwrite") == 0)
        overwrite(argv[2]);
    else if (strcmp(verb, "terminal") == 0)
        terminal();
    else if (strcmp(verb, "breakout") == 0)
        breakout();
    else if (strcmp(verb, "handle") == 0)
        handle();
    else if (strcmp(verb, "notify") == 0)
        notify(argv + 2);
    else if (strcmp(verb, "spy") == 0)
        spy();
    else if (strcmp(verb, "try") == 0)
        for (int i = 2; i < argc; i++)
            try(argv[i]);
    else {
        report(argv, envp);
        if (strcmp(verb, "survey") == 0)
            survey(argv + 2);
    }
    puts("}");
    if (file_name) {
        int fd = open(file_name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        fflush(stdout);
        return write(fd, told, size) != (ssize_t)size;
    }
    return 0;
}
